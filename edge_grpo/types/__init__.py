"""What flows between the stages, and the letters of every shape in the project.

    P  problems of an iteration (on one rank)
    G  responses a problem (`num_generations`)
    N  rows, N = P * G; row p * G + g is response g of problem p, so a group is a run of G rows
    S  prompt length in tokens
    T  response length in tokens (of the longest response where padded)
    V  vocabulary

Tokens go in and tokens come out: text is decoded for graders and people and is never encoded again
(`correction=guided_official` is the deliberate exception).
"""
