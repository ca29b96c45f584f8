package ledger

import (
	"fmt"
	"strings"
	"time"
)

// Code says what kind of thing is wrong. Codes are stable.
type Code string

// The codes of findings.
const (
	FileUnknown     Code = "file_unknown"     // a file that is no segment lies among the segments
	NameWrong       Code = "name_wrong"       // a segment's name does not match what it holds
	HeaderWrong     Code = "header_wrong"     // a segment's header is not what it must be
	FrameWrong      Code = "frame_wrong"      // bytes that are no frame: changed, cut off, or of an unknown version
	SequenceWrong   Code = "sequence_wrong"   // a record does not follow the one before
	SegmentMissing  Code = "segment_missing"  // records between two segments, or before the first, are missing
	SegmentTwice    Code = "segment_twice"    // records are there a second time
	ChainWrong      Code = "chain_wrong"      // a chain head is not the one that the records give
	EndWrong        Code = "end_wrong"        // a segment does not end with its cut checkpoint
	TimeWrong       Code = "time_wrong"       // a record is older than the one before
	KindWrong       Code = "kind_wrong"       // a record stands where its kind may not
	KeyWrong        Code = "key_wrong"        // a key file does not hold its key
	BodyWrong       Code = "body_wrong"       // a body does not open or does not read
	ExchangeWrong   Code = "exchange_wrong"   // the records of an exchange do not make one
	TotalsWrong     Code = "totals_wrong"     // an outcome's totals are not those of its payload
	EpochWrong      Code = "epoch_wrong"      // an epoch's first record does not cite what the vault holds
	TailLost        Code = "tail_lost"        // an epoch ended neither in order nor by the citation of the next
	ExpiryWrong     Code = "expiry_wrong"     // an expiry note does not fit what is there, or speaks of what has not expired
	SalvageWrong    Code = "salvage_wrong"    // a note about a lost tail does not fit what is there
	ExpiryUnproven  Code = "expiry_unproven"  // nothing that the epoch signed proves an expiry; a notice where its gateway signs none
	HoldIgnored     Code = "hold_ignored"     // records went that a hold covers
	ErasureWrong    Code = "erasure_wrong"    // an erasure's note, or a tombstone, is not what it must be
	ExchangeUnended Code = "exchange_unended" // an exchange that a crash cut off was never closed by a later epoch

	SignatureWrong     Code = "signature_wrong"     // a checkpoint is not signed with its epoch's key
	RootWrong          Code = "root_wrong"          // a checkpoint's Merkle root is not the one that the records give
	OriginWrong        Code = "origin_wrong"        // a checkpoint is about another gateway or epoch
	SignerWrong        Code = "signer_wrong"        // an epoch's first record names no usable key
	CertificateMissing Code = "certificate_missing" // an epoch's key has no certificate, and trust was given
	CertificateWrong   Code = "certificate_wrong"   // no trusted key certified an epoch's key
	RolledBack         Code = "rolled_back"         // the vault ends before a checkpoint that was kept elsewhere
	Forked             Code = "forked"              // the vault is not the one that a kept checkpoint is about
	Omitted            Code = "omitted"             // a signed receipt has no record
	Replaced           Code = "replaced"            // a signed receipt's record is another one
	ReceiptForged      Code = "receipt_forged"      // a receipt is not signed with its epoch's key
	ReceiptUnproven    Code = "receipt_unproven"    // nothing in the vault can tell whether a receipt is right
	GatewaySilent      Code = "gateway_silent"      // a gateway was silent for longer than the register allows
	GatewayUnknown     Code = "gateway_unknown"     // a gateway is not in the register
	KeyExpired         Code = "key_expired"         // an epoch's key went with its first record; a notice
	EpochAwaited       Code = "epoch_awaited"       // an epoch that began within 15 min, and the one before has not come whole; a notice
	ClockStep          Code = "clock_step"          // a gateway's clock was set back; a notice
)

// Verdict says how what was read stands.
type Verdict string

// The verdicts.
const (
	// Complete: every gateway ended in order, and nothing is missing.
	Complete Verdict = "complete"
	// Pending: nothing is wrong, and more may come: a gateway runs, or crashed
	// and has not come back, or its sink is behind.
	Pending Verdict = "pending"
	// Tampered: something is wrong that no crash leaves behind.
	Tampered Verdict = "tampered"
)

// Finding is one thing that is wrong. Sequence and Offset are 0 where the
// finding is about no one record.
type Finding struct {
	Code     Code   `json:"code"`
	Segment  string `json:"segment,omitempty"`
	Gateway  string `json:"gateway,omitempty"`
	Epoch    string `json:"epoch,omitempty"`
	Sequence uint64 `json:"sequence,omitempty"`
	// Offset is that of the record's first byte in the segment's file.
	Offset  int64  `json:"offset,omitempty"`
	Message string `json:"message"`
}

// String returns the finding in one line.
func (f Finding) String() string {
	var b strings.Builder
	switch {
	case f.Segment != "":
		fmt.Fprintf(&b, "%s: ", f.Segment)
	case f.Epoch != "" && f.Gateway == "":
		fmt.Fprintf(&b, "epoch %s: ", f.Epoch)
	case f.Epoch != "":
		fmt.Fprintf(&b, "epoch %s of gateway %s: ", f.Epoch, f.Gateway)
	}
	if f.Sequence != 0 {
		fmt.Fprintf(&b, "record %d", f.Sequence)
		if f.Offset != 0 {
			fmt.Fprintf(&b, " at byte %d", f.Offset)
		}
		b.WriteString(": ")
	} else if f.Offset != 0 {
		fmt.Fprintf(&b, "byte %d: ", f.Offset)
	}
	b.WriteString(f.Message)
	return b.String()
}

// Report is the result of a verification.
type Report struct {
	Sound   bool    `json:"sound"`
	Verdict Verdict `json:"verdict"`
	// Anchored is true where the verifier gave deployment keys to trust: Trust
	// has their names. Without them whoever may write the whole vault can have
	// made all of it, keys included.
	Anchored bool     `json:"anchored"`
	Trust    []string `json:"trust,omitempty"`
	// Certified counts epochs whose key a trusted key certified, Checkpoints
	// the signatures that were checked, Kept the heads from elsewhere that the
	// vault was held against.
	Certified   int   `json:"certified_epochs"`
	Checkpoints int64 `json:"checkpoints"`
	Kept        int   `json:"kept_checkpoints"`
	Segments    int64 `json:"segments"`
	Records     int64 `json:"records"`
	Bytes       int64 `json:"bytes"` // of segment files
	// Exchanges counts by how they stand.
	Exchanges Exchanges `json:"exchanges"`
	// Accesses counts records of somebody's reading.
	Accesses int64 `json:"accesses,omitempty"`
	// Opened is true where the sealed bodies were opened and the outcomes'
	// totals compared with the payloads.
	Opened bool `json:"opened"`
	// Expired sums up what is not here any more because its retention is over.
	Expired Expired `json:"expired"`
	// LostTails are epochs whose journal was lost, and which end where what had
	// come of them ends.
	LostTails []LostTail `json:"lost_tails,omitempty"`
	// KeysErased counts data keys that records were sealed with and that were
	// erased, as a note says; Erasures are all that there are.
	KeysErased int64     `json:"keys_erased"`
	Erasures   []Erasure `json:"erasures,omitempty"`
	// KeysMissing counts data keys that records were sealed with and that the
	// vault does not hold, without a word of why. No record is missing for it.
	KeysMissing int64 `json:"keys_missing"`
	// Missing names the first of them.
	Missing []Missing `json:"missing,omitempty"`
	// Gateways are in the order of their names.
	Gateways []Gateway `json:"gateways"`
	// Complete is the time up to which every gateway's records are here, as far
	// as the vault itself can show: the earliest of the gateways that are not
	// closed, and with all closed the latest. Zero for an empty vault.
	// What came later is unproven.
	Complete time.Time `json:"complete_until,omitzero"`
	// Heads are the epochs' last checkpoints, in the order of the segments: to
	// be kept elsewhere, for [Options].Checkpoints of a later verification.
	Heads []Head `json:"heads,omitempty"`
	// Log is how the sink's own log stands, nil where it was not asked for.
	Log *LogReport `json:"log,omitempty"`
	// Receipts are in the order in which they were given.
	Receipts []ReceiptResult `json:"receipts,omitempty"`
	// Notices are no sign of tampering, but worth to be known.
	Notices []Finding `json:"notices,omitempty"`
	// Findings are in the order in which they were found.
	Findings []Finding `json:"findings,omitempty"`
	// More counts findings that Findings had no place for.
	More int64 `json:"more_findings,omitempty"`
}

// Expired says what has expired.
type Expired struct {
	Records int64 `json:"records"`
	// Ranges are the first of them.
	Ranges []ExpiredRange `json:"ranges,omitempty"`
}

// ExpiredRange are records that have expired.
type ExpiredRange struct {
	Gateway string `json:"gateway"`
	Epoch   string `json:"epoch"`
	First   uint64 `json:"first"`
	Last    uint64 `json:"last"`
	Class   string `json:"class,omitempty"` // empty: not known
	// Expiry is when the last of them expired, at the latest.
	Expiry time.Time `json:"expiry"`
	// By says how it is known, each from what the epoch's key signed: "segment"
	// (their digests are still there, and the segment's checkpoint says it),
	// "note" (an expiry note with the checkpoint), "checkpoint" (a later one),
	// "citation" (of the next epoch), "log" (the sink's log has it). With "age",
	// for gateways of earlier versions, the longest retention that the verifier
	// knows is over.
	By string `json:"by"`
}

// Exchanges counts exchanges.
type Exchanges struct {
	Total int64 `json:"total"`
	// Ended have an outcome in their own epoch.
	Ended int64 `json:"ended"`
	// Interrupted were cut off by a crash or a stop, and a later epoch closed
	// them.
	Interrupted int64 `json:"interrupted"`
	// Pending are open at the end of what their gateway delivered.
	Pending int64 `json:"pending"`
	// Lost were open where their gateway's journal was lost: no outcome comes.
	Lost int64 `json:"lost,omitempty"`
}

// Missing says that a data key is not in the vault.
type Missing struct {
	Key     string `json:"key"`
	Gateway string `json:"gateway"`
	Epoch   string `json:"epoch"`
	// Segment and Sequence are of the first record that needs it.
	Segment  string `json:"segment"`
	Sequence uint64 `json:"sequence"`
}

// Gateway sums up one gateway.
type Gateway struct {
	Name     string `json:"name"`
	Epochs   int    `json:"epochs"`
	Records  uint64 `json:"records"`
	Last     string `json:"last_epoch"`
	Sequence uint64 `json:"last_sequence"`
	Head     string `json:"head"` // hex, of the last epoch's chain
	// Complete is the time of the last record that a checkpoint confirmed.
	Complete time.Time `json:"complete_until"`
	Closed   bool      `json:"closed"` // the last epoch ended in order
	Verdict  Verdict   `json:"verdict"`

	pending int
}
