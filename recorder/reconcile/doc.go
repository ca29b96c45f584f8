// Package reconcile holds the records of a vault against BigQuery's own list of
// jobs. Nothing inside a gateway can show a call that went round it; this can.
//
// Its rules: a job counts as recorded only by an exchange that was let through
// and could have made it; nothing of the job list is passed over silently, so a
// line that is not understood is a finding; and what was not compared is
// counted as not compared.
//
// A job is found by its id. Where BigQuery made the job and the gateway never
// saw its id (the answer was lost, or was an error), it is found by the labels
// that the gateway wrote, the SQL and the time.
//
// Memory: the job list is held, about 600 bytes a job with the labels and the
// first characters of its SQL; the SQL itself is held as a digest. The vault is
// streamed; of it only exchanges that are open at one time are held, those that
// never learnt their job's id, and what is found.
package reconcile
