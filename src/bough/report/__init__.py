"""What people look at: tables and a page."""
