"""Every word that a learner sees outside the lessons, in Korean and English."""
