"""dlcourse.measure"""
