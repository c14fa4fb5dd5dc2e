"""What Homeroom promises about speed, measured as ratios inside one run."""
