"""Fully Convolutional Data Description: a pure library of bytes, arrays and tensors.

Nothing is re-exported, so that reading results does not import torch. Read in this order: objective,
networks, upsampling, outliers, training, detector.
"""
