"""What is known of trainings while they run."""
