"""Mixed requests for as long as one likes: is every result right, and do memory, files and threads stay what they are?"""
