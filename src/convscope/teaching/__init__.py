"""What only courses need.

exercise    three growing networks on MNIST, held against the published results
lessons     the exercise as notebooks: their sources, data, and the two versions of each
quiz        random networks, whose shapes and parameters the student predicts
grading     the checks of the tasks, and handed-in notebooks → marks
"""
