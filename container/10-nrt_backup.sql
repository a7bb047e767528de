-- The views and functions, in the database that the container makes and in the one for the operator.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS nrt_backup;
\connect postgres
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS nrt_backup;
