"""What is measured of speed, and against what."""
