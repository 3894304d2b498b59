"""Any engine in a process of its own: ``engine`` is the server's side, ``host`` the other, ``wire`` what they say.

Nothing here knows which engine it is: the process is sent what makes one. Texts, names and keys never come here.
"""
