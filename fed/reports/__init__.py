"""What finished runs show: pictures, tables, pages."""
