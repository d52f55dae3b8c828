"""The output of jobs and sweeps: folders, tables, pictures, and lines on the terminal."""
