"""Files of any size -> answers, a line each: resumable on one machine, or on Apache Beam on many."""
