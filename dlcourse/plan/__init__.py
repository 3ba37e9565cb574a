"""What training needs on more ranks than there are here: formulas, and one rank of thousands."""
