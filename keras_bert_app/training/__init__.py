"""Task x strategy -> checkpoint."""
