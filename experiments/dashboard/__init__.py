"""The local dashboard: run folders in the browser. It reads them, and writes nothing."""
