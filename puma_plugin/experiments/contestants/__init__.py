"""What is trained and compared: methods, models, losses, and their weights in files."""
