-- The views and functions, in the database that the container makes and in the one for the operator.
CREATE EXTENSION IF NOT EXISTS nrt_backup;
\connect postgres
CREATE EXTENSION IF NOT EXISTS nrt_backup;
