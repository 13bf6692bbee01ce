"""What is measured, and the glossary of every logged key."""
