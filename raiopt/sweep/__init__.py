"""What turns one job into many: the name of each job's folder, and the record of where a sweep lies."""
