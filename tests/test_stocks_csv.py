"""Price files: every published layout is read alike, and every fault is named with its file and row."""

import gzip
import io
import zipfile

import numpy as np
import pytest

from common.errors import DataError, UsageError
from stocks.configs import demo, prices
from stocks.data import datasets
from stocks.data.csv_files import FAULTS, Reader
from stocks.data.panel import feature_values

YAHOO = """Date,Open,High,Low,Close,Adj Close,Volume
2012-09-04,119.0,120.5,117.5,118.0,59.0,1000
2012-09-05,118.0,119.0,116.0,117.0,58.5,2000
2012-09-06,117.5,121.0,117.0,120.0,60.0,1500
"""
FIVE_YEARS = """date,open,high,low,close,volume,Name
2013-02-08,15.07,15.12,14.63,14.75,8407500,AAL
2013-02-11,14.89,15.01,14.26,14.46,8882000,AAL
"""
HUGE = """Date,Open,High,Low,Close,Volume,OpenInt
1984-09-07,0.42388,0.42902,0.41874,0.42388,23220030,0
1984-09-10,0.42388,0.42516,0.41366,0.42134,18022532,0
"""
COMBINED = """Ticker,Date,Open,High,Low,Close,Volume
B,2020-01-03,2,3,1,2,10
A,2020-01-02,5,6,4,5,10
B,2020-01-02,2,2.5,1.5,2.2,11
A,2020-01-03,5,6,4,5.5,12
"""
YFINANCE = """Price,Close,High,Low,Open,Volume
Ticker,AAPL,AAPL,AAPL,AAPL,AAPL
Date,,,,,
2020-01-02,72.7,72.8,71.5,71.7,135480400
2020-01-03,72.0,72.5,71.8,71.9,146322800
"""
YFINANCE_WIDE = """Price,Close,Close,High,High,Low,Low,Open,Open,Volume,Volume
Ticker,NEW,AAPL,NEW,AAPL,NEW,AAPL,NEW,AAPL,NEW,AAPL
Date,,,,,,,,,,
2020-01-02,,72.7,,72.8,,71.5,,71.7,,135480400
2020-01-03,5,72.0,6,72.8,4,71.8,5,71.9,10,146322800
2020-01-06,x,72.6,6,72.6,4,70.9,5,71.1,10,118387200
"""


def read(text, name='X.csv'):
    reader = Reader()
    return reader.read(name, text.encode()), {kind: items for kind, items in reader.faults.items() if items}


def test_the_yahoo_layout_keeps_the_adjusted_close():
    (history,), faults = read(YAHOO, 'folder/BRK.B.csv')
    assert history.ticker == 'BRK.B'
    assert faults == {}
    assert history.dates.tolist() == np.array(['2012-09-04', '2012-09-05', '2012-09-06'], 'M8[D]').tolist()
    np.testing.assert_array_equal(history.values[0], [119.0, 120.5, 117.5, 118.0, 1000, 59.0])


def test_the_five_year_layout_takes_its_ticker_from_the_name_column():
    (history,), faults = read(FIVE_YEARS, 'AAL_data.csv')
    assert history.ticker == 'AAL'
    assert faults == {}
    np.testing.assert_array_equal(history.values[:, 5], history.values[:, 3])  # no adjusted close: the close itself


def test_the_huge_layout_takes_its_ticker_from_the_file_name():
    (history,), _ = read(HUGE, 'Stocks/aapl.us.txt')
    assert history.ticker == 'AAPL'
    np.testing.assert_array_equal(history.values[1, :5], [0.42388, 0.42516, 0.41366, 0.42134, 18022532])


def test_one_file_may_hold_many_tickers_in_any_order():
    histories, faults = read(COMBINED)
    assert [history.ticker for history in histories] == ['A', 'B']
    np.testing.assert_array_equal(histories[1].values[:, 3], [2.2, 2.0])
    assert 'unsorted' in faults


def test_the_yfinance_layout_takes_its_tickers_from_its_second_line():
    (history,), faults = read(YFINANCE, 'prices.csv')
    assert (history.ticker, faults) == ('AAPL', {})
    np.testing.assert_array_equal(history.values[0, :5], [71.7, 72.8, 71.5, 72.7, 135480400])
    lines = YFINANCE.splitlines()
    by_ticker = '\n'.join([lines[1], lines[0], *lines[2:]])  # download(group_by='ticker')
    np.testing.assert_array_equal(read(by_ticker)[0][0].values, history.values)


def test_the_yfinance_layout_of_many_tickers_leaves_out_days_before_a_ticker_began():
    (new, apple), faults = read(YFINANCE_WIDE)
    assert (new.ticker, apple.ticker) == ('NEW', 'AAPL')
    np.testing.assert_array_equal(new.values[:, :5], [[5, 6, 4, 5, 10]])
    np.testing.assert_array_equal(apple.values[:, 3], [72.7, 72.0, 72.6])
    assert faults == {'non_numeric': ["X.csv row 6: Close of NEW is 'x'"]}


@pytest.mark.parametrize(
    'header', ['Adj. Close', 'AdjClose', 'Adjusted Close', 'adjusted_close', 'adjclose', 'ADJ CLOSE']
)
def test_the_adjusted_close_has_many_spellings(header):
    (history,), _ = read(YAHOO.replace('Adj Close', header))
    np.testing.assert_array_equal(history.values[:, 5], [59.0, 58.5, 60.0])


def test_the_symbol_is_the_ticker_where_the_name_is_the_companys():
    text = FIVE_YEARS.replace('Name', 'Symbol,Name').replace('AAL', 'AAL,"American Airlines, Inc."')
    (history,), faults = read(text)
    assert (history.ticker, faults) == ('AAL', {})


def test_thousands_may_be_separated():
    text = YAHOO.replace('118.0,119.0,116.0', '"1,118.0","12,119.25","1,116"').replace(',1500', ',"1,234,567"')
    (history,), _ = read(text)
    np.testing.assert_array_equal(history.values[1, :3], [1118.0, 12119.25, 1116.0])
    assert history.values[2, 4] == 1234567
    assert 'non_numeric' in read(YAHOO.replace('118.0,119.0', '"118,25",119.0'))[1]


@pytest.mark.parametrize('price', ['0,985', '1.234,567', '1234,567', '1,23,456'])
def test_only_commas_before_every_three_digits_separate_thousands(price):
    _, faults = read(YAHOO.replace('118.0,119.0', f'"{price}",119.0'))
    assert faults == {'non_numeric': [f'X.csv row 3: Open is {price!r}']}


@pytest.mark.parametrize('other', ['', 'FALSE'])
def test_true_and_false_are_no_prices(other):
    text = f'Date,Open,High,Low,Close,Volume\n2020-01-02,TRUE,1,1,1,1\n2020-01-03,{other},1,1,1,1\n'
    histories, faults = read(text)
    assert histories == []
    assert faults['non_numeric'][0] == 'X.csv row 2: Open is True'


def test_a_comma_that_may_be_a_decimal_comma_is_refused():
    text = 'Date;Open;High;Low;Close;Volume\n2020-01-02;43,212;43,900;42,100;43,000;1,234.5\n'
    histories, faults = read(text)
    assert histories == []
    assert list(faults) == ['not_a_table']
    assert "X.csv: the comma of its price '43,212' may be a decimal comma" in faults['not_a_table'][0]
    for row in ('2020-01-03;43,212.5;43,900;42,100;43,000;1', '2020-01-03;9;9;9;9.5;1'):
        np.testing.assert_array_equal(read(text + row)[0][0].values[0, :4], [43212, 43900, 42100, 43000])
    (history,), _ = read(text.replace('43,900', '1,043,900'))
    assert history.values[0, 1] == 1043900
    yen = 'Date,Open,High,Low,Close,Volume\n2020-01-02,"71,200","71,900","70,100","71,000","1,234"\n'
    np.testing.assert_array_equal(read(yen)[0][0].values[0, :4], [71200, 71900, 70100, 71000])


@pytest.mark.parametrize('separator', [';', '\t'])
def test_semicolons_and_tabs_separate_like_commas(separator):
    (history,), faults = read(YAHOO.replace(',', separator))
    assert faults == {}
    np.testing.assert_array_equal(history.values, read(YAHOO)[0][0].values)
    (apple,) = read(YFINANCE.replace(',', separator))[0]
    assert apple.ticker == 'AAPL'
    histories, faults = read(YAHOO.replace(',', separator).replace('.', ','))
    assert histories == []
    assert "the comma of its price '119,0' may be a decimal comma" in faults['not_a_table'][0]


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (YAHOO.encode('utf-16'), 'not written in UTF-8, but perhaps in UTF-16; save it as CSV in UTF-8'),
        (YAHOO.replace('117.5,', '117,5,').encode(), 'cannot be read as a table of commas, semicolons or tabs: '),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_a_sentence(content, said):
    reader = Reader()
    assert reader.read('X.csv', content) == []
    assert said in reader.faults['not_a_table'][0]


def test_a_ticker_keeps_its_letters():
    for pair in (('000001', '000002'), ('1E5', 'NAN'), ('FALSE', 'TRUE')):
        histories, _ = read(COMBINED.replace('A,2', f'{pair[0]},2').replace('B,2', f'{pair[1]},2'))
        assert tuple(history.ticker for history in histories) == pair


def test_a_ticker_called_na_or_null_is_a_ticker():
    assert [history.ticker for history in read(COMBINED.replace('A,2', 'NA,2').replace('B,2', 'null,2'))[0]] == [
        'NA',
        'null',
    ]


@pytest.mark.parametrize(
    ('change', 'kind', 'told'),
    [
        (
            ('118.0,119.0,116.0,117.0,58.5,2000', 'null,null,null,null,null,null'),
            'non_numeric',
            "row 3: Open is 'null'",
        ),
        (('118.0,119.0', ',119.0'), 'blank', 'row 3: Open is blank'),
        (('119.0,116.0', '119.0,-116.0'), 'non_positive_price', 'row 3: Low is -116.0'),
        (('2012-09-05', '05.09.2012'), 'unreadable_date', "row 3: Date is '05.09.2012'"),
        (('2012-09-05', '2012-09'), 'unreadable_date', "row 3: Date is '2012-09'"),
        (('58.5,2000', '58.5,-2000'), 'negative_volume', 'row 3: Volume is -2000'),
        (('119.0,116.0', '115.0,116.0'), 'high_below_low', 'row 3: High is 115.0'),
        (('2012-09-05', '2012-09-04'), 'contradictory_date', 'row 3: 2012-09-04 is also row 2'),
        (('2012-09-04', '2012-09-10'), 'unsorted', 'row 3 predates the one above'),
        (('2012-09-06', '2012-09-16'), 'long_gap', 'nothing from 2012-09-05 to 2012-09-16'),
        (('120.0,60.0', '60.0,60.0'), 'split', '2012-09-06 Close moves by -48.7%, Adj Close by +2.6%'),
    ],
)
def test_a_fault_is_named_with_file_and_row(change, kind, told):
    _, faults = read(YAHOO.replace(*change))
    assert list(faults) == [kind]
    (item,) = faults[kind]
    assert item.startswith('X.csv')
    assert told in item


def test_a_row_that_is_there_twice_is_left_out_once():
    row = '2012-09-06,117.5,121.0,117.0,120.0,60.0,1500\n'
    (history,), faults = read(YAHOO + row)
    assert len(history) == 3
    assert faults == {'repeated_row': ['X.csv row 5: 2012-09-06 is also row 4']}


def test_of_rows_that_contradict_each_other_the_first_one_stays():
    (history,), _ = read(YAHOO.replace('2012-09-05', '2012-09-04'))
    np.testing.assert_array_equal(history.values[:, 3], [118.0, 120.0])


@pytest.mark.parametrize('times', [('', '', ''), (' 09:30:00-05:00', ' 10:30:00-05:00', ' 11:30:00-05:00')])
def test_several_bars_a_day_are_no_daily_prices(times):
    header, *rows = YAHOO.splitlines()
    bars = [row[:9] + day + time + row[10:] for day in '45' for time, row in zip(times, rows, strict=True)]
    histories, faults = read('\n'.join([header, *bars]))
    assert histories == []
    assert list(faults) == ['not_a_table']
    assert faults['not_a_table'][0].startswith('X.csv has 6 rows for 2 dates: bars of hours or minutes, or several')


def test_columns_that_never_change_and_crashes_without_adjusted_close_are_named():
    _, faults = read('Date,Open,High,Low,Close,Volume\n2020-01-02,1,9,1,9,5\n2020-01-03,2,9,1,4,5\n')
    assert set(faults) == {'constant_column', 'possible_split'}
    assert [item.split()[1] for item in faults['constant_column']] == ['High', 'Low', 'Volume']


@pytest.mark.parametrize(('close', 'named'), [('6', True), ('7', False), ('13.5', True), ('12', False)])
def test_without_adjusted_close_a_split_of_three_for_two_is_named_and_a_bad_day_is_not(close, named):
    _, faults = read(f'Date,Open,High,Low,Close,Volume\n2020-01-02,1,9,1,9,5\n2020-01-03,2,8,2,{close},6\n')
    assert ('possible_split' in faults) == named


@pytest.mark.parametrize(
    'text',
    [
        '404 Not Found: Timestamp data missing.',
        '',
        'a,b\n1,2\n',
        '\x00\x01,\n"',
        'Date,"',
        YFINANCE.replace('High', 'Tall'),
    ],
)
def test_what_is_no_price_table_is_named(text):
    histories, faults = read(text)
    assert histories == []
    assert list(faults) == ['not_a_table']
    assert faults['not_a_table'][0].startswith('X.csv: ')


def test_a_file_without_rows_is_named():
    assert read(YAHOO.splitlines()[0]) == ([], {'no_rows': ['X.csv']})
    assert read(YFINANCE[:70]) == ([], {'no_rows': ['X.csv: AAPL']})


def test_a_ticker_whose_download_failed_is_named():
    lines = YFINANCE_WIDE.replace('NEW', 'DEAD').splitlines()[:4]  # on the only day left, DEAD has no trade
    (apple,), faults = read('\n'.join(lines), 'yf.csv')
    assert apple.ticker == 'AAPL'
    assert faults == {'no_rows': ['yf.csv: DEAD']}


def test_a_ticker_without_a_usable_row_beside_others_is_named():
    (history,), faults = read(COMBINED.replace(',5,6,', ',x,6,'))
    assert history.ticker == 'B'
    assert faults['no_rows'] == ['X.csv: A']


def test_prices_without_volume_serve_where_volume_is_no_feature():
    (history,), faults = read('Date,Open,High,Low,Close\n2020-01-02,1,9,1,9\n2020-01-03,2,8,2,8\n')
    assert faults == {'no_volume': ['X.csv']}
    config = prices.get_config().dataset
    with pytest.raises(DataError, match=r'X has no Volume: leave it out of config\.dataset\.features'):
        feature_values(history, config)
    config.features = ('Low', 'Close')
    np.testing.assert_array_equal(feature_values(history, config), [[1, 9], [2, 8]])


def test_a_compressed_file_reads_like_the_plain_one():
    (history,) = Reader().read('X.csv.gz', gzip.compress(YAHOO.encode()))
    np.testing.assert_array_equal(history.values, read(YAHOO)[0][0].values)
    reader = Reader()
    assert reader.read('X.csv.gz', YAHOO.encode()) == []
    assert len(reader.faults['not_a_table']) == 1


def write_bad_folder(folder):
    """What a download leaves when some symbols are gone: error texts in place of tables, a row of nulls."""
    folder.mkdir()
    (folder / 'BF.B.csv').write_text('404 Not Found: Timestamp data missing.')
    (folder / 'BRK.B.csv').write_text('404 Not Found: No data found, symbol may be delisted')
    (folder / 'PTR.csv').write_text(YAHOO.replace('118.0,119.0,116.0,117.0,58.5,2000', 'null,null,null,null,null,null'))
    (folder / 'REX.csv').write_text(YAHOO)


def test_bad_files_stop_prepare_and_leave_nothing(tmp_path):
    write_bad_folder(tmp_path / 'raw')
    config = prices.get_config().dataset
    with pytest.raises(DataError, match=r'(?s)BF\.B\.csv.*BRK\.B\.csv.*PTR\.csv row 3.*--skip_bad'):
        datasets.prepare(config, tmp_path / 'raw', tmp_path / 'data', skip_bad=False)
    assert not datasets.is_prepared(config, tmp_path / 'data')
    assert [path.name for path in (tmp_path / 'data' / 'prices').iterdir()] == ['.lock']


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (('58.5,2000', '58.5,many'), "Volume is 'many'"),
        (('119.0,116.0', '119.0,-116.0'), 'Low is -116.0'),
        (('2012-09-05', '05.09.2012'), "Date is '05.09.2012'"),
        (('58.5,2000', '58.5,-2000'), 'Volume is -2000'),
        (('2012-09-05', '2012-09-04'), '2012-09-04 is also row 2'),
        (('118.0,119.0', ',119.0'), ''),
        (('119.0,116.0', '115.0,116.0'), ''),
        (('2012-09-06', '2012-09-16'), ''),
    ],
)
def test_rows_that_somebody_must_look_at_stop_prepare_and_others_do_not(tmp_path, change, told):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'X.csv').write_text(YAHOO.replace(*change))
    config = prices.get_config().dataset
    if told:
        with pytest.raises(DataError, match=rf'(?s)X\.csv row 3: {told}.*--skip_bad'):
            datasets.prepare(config, tmp_path / 'raw', tmp_path / 'data', skip_bad=False)
    else:
        assert datasets.prepare(config, tmp_path / 'raw', tmp_path / 'data', skip_bad=False).counts['tickers'] == 1


def test_bad_files_and_rows_are_skipped_when_asked(tmp_path):
    write_bad_folder(tmp_path / 'raw')
    config = prices.get_config().dataset
    audit = datasets.prepare(config, tmp_path / 'raw', tmp_path / 'data', skip_bad=True)
    assert len(audit['not_a_table'].items) == 2
    assert {finding.kind for finding in audit.findings} == set(FAULTS)
    histories = datasets.read_histories(config, tmp_path / 'data')
    assert {history.ticker: len(history) for history in histories} == {'PTR': 2, 'REX': 3}


def test_a_zip_prepares_like_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / 'raw.zip', 'w') as archive:
        archive.writestr('prices/AAL_data.csv', FIVE_YEARS)
        archive.writestr('prices/aapl.us.txt', HUGE)
        archive.writestr('prices/readme.md', 'not prices')
    config = prices.get_config().dataset
    datasets.prepare(config, tmp_path / 'raw.zip', tmp_path / 'data', skip_bad=False)
    histories = datasets.read_histories(config, tmp_path / 'data')
    expected = [*read(FIVE_YEARS, 'AAL_data.csv')[0], *read(HUGE, 'aapl.us.txt')[0]]
    for history, raw in zip(histories, sorted(expected, key=lambda h: h.ticker), strict=True):
        assert history.ticker == raw.ticker
        np.testing.assert_array_equal(history.dates, raw.dates)
        np.testing.assert_array_equal(history.values, raw.values)


def test_a_ticker_in_two_files_is_refused_where_they_differ(tmp_path):
    for folder, close in (('a', '118.0'), ('b', '118.5')):
        (tmp_path / 'raw' / folder).mkdir(parents=True)
        (tmp_path / 'raw' / folder / 'X.csv').write_text(YAHOO.replace('117.5,118.0', f'117.5,{close}'))
    with pytest.raises(DataError, match=r'b/X\.csv: X has other rows in a/X\.csv, which is used'):
        datasets.prepare(prices.get_config().dataset, tmp_path / 'raw', tmp_path / 'data', skip_bad=False)


def test_the_five_year_set_as_it_ships_holds_every_ticker_twice(tmp_path):
    folder = tmp_path / 'raw' / 'individual_stocks_5yr'
    folder.mkdir(parents=True)
    other = FIVE_YEARS.replace('AAL', 'ZTS')
    (tmp_path / 'raw' / 'all_stocks_5yr.csv').write_text(FIVE_YEARS + other.partition('\n')[2])
    (folder / 'AAL_data.csv').write_text(FIVE_YEARS)
    (folder / 'ZTS_data.csv').write_text(other)
    config = prices.get_config().dataset
    audit = datasets.prepare(config, tmp_path / 'raw', tmp_path / 'data', skip_bad=False)
    assert len(audit['repeated_history'].items) == 2
    histories = datasets.read_histories(config, tmp_path / 'data')
    assert {history.ticker: len(history) for history in histories} == {'AAL': 2, 'ZTS': 2}


def test_preparing_twice_reads_once(tmp_path, monkeypatch):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'X.csv').write_text(YAHOO)
    config = prices.get_config().dataset
    first = datasets.prepare(config, tmp_path / 'raw', tmp_path / 'data', skip_bad=False)
    monkeypatch.delattr(Reader, 'read')
    assert str(datasets.prepare(config, tmp_path / 'raw', tmp_path / 'data', skip_bad=False)) == str(first)


def test_prices_that_take_the_place_of_those_of_another_folder_say_so(tmp_path):
    config = prices.get_config().dataset
    for name, text in {'mine': YAHOO, 'yours': FIVE_YEARS}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'X.csv').write_text(text)
    datasets.prepare(config, tmp_path / 'mine', tmp_path / 'data', skip_bad=False)
    audit = datasets.prepare(config, tmp_path / 'yours', tmp_path / 'data', skip_bad=False)
    assert audit.counts['instead_of'] == str(tmp_path / 'mine')


def test_raw_files_are_asked_for_where_none_come_with_a_package(tmp_path):
    with pytest.raises(
        UsageError, match=rf'no raw files to prepare prices in {tmp_path}/prices.*set config\.dataset\.raw_dir'
    ):
        datasets.prepare(prices.get_config().dataset, None, tmp_path, skip_bad=False)
    with pytest.raises(DataError, match='not prepared'):
        datasets.load(prices.get_config().dataset, tmp_path)


def test_the_demo_brings_its_prices(tmp_path):
    config = demo.get_config().dataset
    audit = datasets.prepare(config, None, tmp_path, skip_bad=False)
    assert len(audit['split'].items) == 3  # Apple 2000 and 2005, Microsoft 2003
    dataset = datasets.load(config, tmp_path)
    assert dataset.info['tickers'] == ['AAPL', 'GOOG', 'IBM', 'MSFT']
    assert dataset.info['left_out'] == {'FB': 196}
    stream = io.StringIO()
    dataset.splits['test'].records.to_csv(stream)
    assert 'nan' not in stream.getvalue()
