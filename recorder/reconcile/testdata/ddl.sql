CREATE TABLE IF NOT EXISTS `audit-project.evidence.verbatim_jobs`
PARTITION BY DATE(creation_time)
CLUSTER BY project_id, user_email
AS SELECT job_id, project_id, parent_job_id, user_email, creation_time, job_type, statement_type, query, labels, destination_table, 'us' AS location
FROM `my-project`.`region-us`.INFORMATION_SCHEMA.JOBS_BY_PROJECT
WHERE FALSE;

-- Every hour, in the region of the jobs. Jobs that are not done yet come with a later run.
INSERT INTO `audit-project.evidence.verbatim_jobs`
  (job_id, project_id, parent_job_id, user_email, creation_time, job_type, statement_type, query, labels, destination_table, location)
SELECT job_id, project_id, parent_job_id, user_email, creation_time, job_type, statement_type, query, labels, destination_table, 'us'
FROM `my-project`.`region-us`.INFORMATION_SCHEMA.JOBS_BY_PROJECT AS job
WHERE creation_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 1 DAY)
  AND state = 'DONE'
  AND NOT EXISTS (
    SELECT 1 FROM `audit-project.evidence.verbatim_jobs` AS kept
    WHERE kept.creation_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 1 DAY)
      AND kept.project_id = job.project_id AND kept.job_id = job.job_id AND kept.location = 'us');
