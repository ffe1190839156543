"""What each option of the layer costs."""
