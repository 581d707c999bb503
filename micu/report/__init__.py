"""Results beside the paper's figures, as one page, as Markdown or as CSV."""
