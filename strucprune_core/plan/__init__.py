"""What a job will do, known from its specification and the model's headers. No torch."""
