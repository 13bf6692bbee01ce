"""Where rows and pictures go."""
