"""What people look at: pictures, reports, pages and ready queries."""
