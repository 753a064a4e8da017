"""Labels of images: read in every spelling, matched to images, drawn on, and kept."""
