"""What people look at: the page of one explained sample, and figures for papers."""
