"""What knows nothing of the subject: command line, files, run records, devices, formats."""
