"""Reports on runs on disk: tables, figures, statistics, verdicts and the HTML page. Nothing here needs torch."""
