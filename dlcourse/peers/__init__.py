"""dlcourse.peers"""
