"""The recurrences that have a name, one file each: copying a file adds one."""
