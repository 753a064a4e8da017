"""The edge of a process: settings, errors with their exit codes, tables, local files. Knows no other folder of jobs."""
