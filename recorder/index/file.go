package index

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/compress/uncompressed"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"verbatim.dev/recorder/record"
)

const (
	// RowsPrefix is where the rows rest, StatePrefix where what the next build
	// goes on from does. Nothing of a record's content is in the state.
	RowsPrefix  = "exchanges/"
	StatePrefix = "state/"

	dayForm   = "2006-01-02"
	dayPrefix = "dt="
	rowsExt   = ".parquet"

	// version of the form of the files; a build of another one asks for a
	// rebuild.
	version = 1
)

// fileID names a file of rows: those of an epoch whose first record has a
// sequence from First to the next file's, and whose request came on Day.
type fileID struct {
	Day   string
	Epoch record.Epoch
	First uint64
}

func (f fileID) name() string {
	return fmt.Sprintf("%s%s%s/%s-%020d%s", RowsPrefix, dayPrefix, f.Day, f.Epoch, f.First, rowsExt)
}

// parseFile reads what name wrote, and only that.
func parseFile(name string) (fileID, error) {
	var f fileID
	rest, ok := strings.CutPrefix(name, RowsPrefix+dayPrefix)
	day, file, ok2 := strings.Cut(rest, "/")
	file, ok3 := strings.CutSuffix(file, rowsExt)
	epoch, first, ok4 := strings.Cut(file, "-")
	if ok && ok2 && ok3 && ok4 {
		e, err := record.ParseEpoch(epoch)
		if _, scan := fmt.Sscanf(first, "%d", &f.First); err == nil && scan == nil {
			f.Day, f.Epoch = day, e
			if _, err := time.Parse(dayForm, day); err == nil && f.name() == name {
				return f, nil
			}
		}
	}
	return fileID{}, fmt.Errorf("%q: want exchanges/dt=DAY/EPOCH-FIRST.parquet", name)
}

// codecs. Readers of every kind know Zstandard.
var (
	packed compress.Codec = &zstd.Codec{Level: zstd.SpeedDefault, Concurrency: 1}
	plain  compress.Codec = &uncompressed.Codec{}
)

const rowGroup = 16 << 10 // rows

// encode writes rows into the bytes of a file. The same rows give the same
// bytes. Encodings are those that every reader knows: PLAIN and dictionaries,
// in data pages of version 1.
func encode(rows []*Row, codec compress.Codec) ([]byte, error) {
	var b bytes.Buffer
	w := parquet.NewGenericWriter[Row](&b,
		parquet.Compression(codec), parquet.DataPageVersion(1), parquet.MaxRowsPerRowGroup(rowGroup),
		parquet.DefaultEncodingFor(parquet.ByteArray, &parquet.Plain),
		parquet.DictionaryMaxBytes(1<<20),
		parquet.CreatedBy("verbatim", fmt.Sprint(version), ""),
	)
	one := make([]Row, 1)
	for _, r := range rows {
		one[0] = *r
		if _, err := w.Write(one); err != nil {
			return nil, fmt.Errorf("parquet: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("parquet: %w", err)
	}
	return b.Bytes(), nil
}

// decode calls do for each row of a file. The row is the callee's.
func decode(b []byte, do func(*Row) error) (err error) {
	// The bytes may be anybody's, and the reader's own checks are not all there
	// is between them and a slice.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("parquet: %v", p)
		}
	}()
	f, err := parquet.OpenFile(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return fmt.Errorf("parquet: %w", err)
	}
	r := parquet.NewGenericReader[Row](f)
	defer r.Close()
	for {
		rows := make([]Row, 64)
		n, err := r.Read(rows)
		for i := range rows[:n] {
			if err := do(&rows[i]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("parquet: %w", err)
		}
	}
}
