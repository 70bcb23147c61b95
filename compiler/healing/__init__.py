"""Healing: stand-ins learn to do what they stand in for, within minutes of wall time that the user sets.

    capture      what flows into and out of every site in the Program before the graft, once, to disk   (teacher.py)
    sites        each stand-in alone learns its site's output                                  (site_distillation.py)
    end to end   all of them together, with low-rank changes to the layers around them, learn the model's outputs
                                                                                                    (end_to_end.py)

Everything is checkpointed in a folder named by what it depends on (work_folder.py): a run that was killed goes on from
there, one that is interrupted keeps what it has. `heal` in heal.py is the whole story.
"""
