package sinklog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Where the log's objects rest.
const (
	Prefix           = "log/"
	CheckpointPrefix = Prefix + "checkpoint/"
	CosignedPrefix   = Prefix + "cosigned/"
	stagePrefix      = Prefix + "stage/"
	tilePrefix       = Prefix + "tile/"

	// TileHeight is that of C2SP tlog-tiles.
	TileHeight = 8
	// TileWidth is how many entries a full bundle, and hashes a full tile, has.
	TileWidth = 1 << TileHeight

	digits = 20
)

// CheckpointName returns the name of the checkpoint at a size.
func CheckpointName(size int64) string { return fmt.Sprintf("%s%0*d", CheckpointPrefix, digits, size) }

// ParseCheckpointName reads what [CheckpointName] wrote, and only that.
func ParseCheckpointName(name string) (size int64, err error) {
	s, ok := strings.CutPrefix(name, CheckpointPrefix)
	size, err = parseDigits(s)
	if !ok || err != nil {
		return 0, fmt.Errorf("checkpoint name %q: want %sSIZE, %d digits", name, CheckpointPrefix, digits)
	}
	return size, nil
}

// CosignedName returns the name of a checkpoint with cosignatures. The time, in
// Unix nanoseconds, only tells those of one size apart.
func CosignedName(size, nano int64) string {
	return fmt.Sprintf("%s%0*d-%0*d", CosignedPrefix, digits, size, digits, nano)
}

// ParseCosignedName reads what [CosignedName] wrote, and only that.
func ParseCosignedName(name string) (size, nano int64, err error) {
	s, ok := strings.CutPrefix(name, CosignedPrefix)
	a, b, ok2 := strings.Cut(s, "-")
	size, err = parseDigits(a)
	nano, err2 := parseDigits(b)
	if !ok || !ok2 || err != nil || err2 != nil {
		return 0, 0, fmt.Errorf("name %q: want %sSIZE-TIME, %d digits each", name, CosignedPrefix, digits)
	}
	return size, nano, nil
}

func parseDigits(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || len(s) != digits || n < 0 {
		return 0, fmt.Errorf("%q: want %d digits", s, digits)
	}
	return n, nil
}

func stageName(from int64) string { return fmt.Sprintf("%s%0*d", stagePrefix, digits, from) }

// TileName returns the name of a tile of hashes, of height [TileHeight].
func TileName(t tlog.Tile) string {
	// Package tlog puts the height first, which C2SP leaves out.
	return Prefix + strings.Replace(t.Path(), fmt.Sprintf("tile/%d/", TileHeight), "tile/", 1)
}

// BundleName returns the name of a bundle of entries: the first width entries
// of those from TileWidth * n on.
func BundleName(n int64, width int) string {
	t := tlog.Tile{H: TileHeight, L: 0, N: n, W: width}
	return tilePrefix + "entries/" + strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/0/", TileHeight))
}

// MaxEntry is the largest entry, in bytes, MaxBundle the largest bundle.
const (
	MaxEntry  = 1<<16 - 1
	MaxBundle = TileWidth * (2 + MaxEntry)
)

// appendEntry appends an entry to a bundle.
func appendEntry(bundle, entry []byte) []byte {
	return append(binary.BigEndian.AppendUint16(bundle, uint16(len(entry))), entry...)
}

// ParseBundle takes a bundle apart. The entries share its memory.
func ParseBundle(b []byte) ([][]byte, error) {
	var entries [][]byte
	for len(b) > 0 {
		if len(entries) == TileWidth {
			return nil, fmt.Errorf("entry bundle: more than %d entries", TileWidth)
		}
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, errors.New("entry bundle: ends within an entry")
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		entries, b = append(entries, b[2:n:n]), b[n:]
	}
	return entries, nil
}
