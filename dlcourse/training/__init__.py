"""dlcourse.training"""
