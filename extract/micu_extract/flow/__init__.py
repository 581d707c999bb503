"""Optical flow of two pictures: its methods, their settings and options."""
