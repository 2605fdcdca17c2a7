"""Trained detectors in use: images in, boxes with the spread of their sides out."""
