"""What a threshold comes from: nominal images and synthetic anomalies, measured; fresh images, or reviewed runs."""
