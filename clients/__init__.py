"""What one client does with the weights it received, and what it keeps."""
