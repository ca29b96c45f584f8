SELECT job_id, project_id, parent_job_id, user_email, creation_time, job_type, statement_type, query, labels, destination_table,
  'us' AS location
FROM `my-project`.`region-us`.INFORMATION_SCHEMA.JOBS_BY_PROJECT
WHERE creation_time >= TIMESTAMP '2026-03-14 00:00:00+00'
  AND creation_time < TIMESTAMP '2026-03-15 00:00:00.5+00'
