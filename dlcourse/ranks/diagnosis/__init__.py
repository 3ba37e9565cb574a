"""Why a cell did not end: works on plain data that the ranks sent, without processes."""
