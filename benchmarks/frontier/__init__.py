"""Error over time: what more landmarks, k-means and near fields buy."""
