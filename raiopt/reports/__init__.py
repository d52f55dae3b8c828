"""What people look at: runs as they lie on disk, figures, statistics, verdicts, the page. Nothing of it needs torch."""
