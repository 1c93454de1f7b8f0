"""Linear algebra on matrices that may be larger than the device."""
