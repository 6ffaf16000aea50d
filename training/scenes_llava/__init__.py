"""Training of scenes-llava, from nothing."""
