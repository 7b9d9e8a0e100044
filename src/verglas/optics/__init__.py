"""Contrast transfer, aberrations, dose."""
