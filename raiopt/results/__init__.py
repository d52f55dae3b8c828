"""What a job and a sweep leave behind: folders, tables, pictures, and lines on the terminal."""
