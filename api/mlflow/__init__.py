"""Logs how jobs ended to the operator's MLflow server."""
